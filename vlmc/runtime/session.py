"""A model that is ready to answer, whatever engine runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmc.diagnostics.faults import EnvironmentFault, UsageError
from vlmc.runtime.amounts import check_whole
from vlmc.runtime.answer import Answer
from vlmc.runtime.chat import ChatTemplate
from vlmc.runtime.choices import check_masks, judged
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Engine, Pixels, Row, check_rows
from vlmc.runtime.features import Encoded, FeatureStore
from vlmc.runtime.finite import DAMAGED, named_tensors
from vlmc.runtime.media import listed
from vlmc.runtime.processor import ImageProcessor
from vlmc.runtime.questions import Asker, Question, of_prompt
from vlmc.runtime.rows import Layout, check_context, check_images, laid_out
from vlmc.runtime.sampling import Sampling
from vlmc.runtime.sight import Sight
from vlmc.runtime.speaker import Cancel, Speaker
from vlmc.runtime.stopping import stop_strings
from vlmc.runtime.stream import Stream
from vlmc.runtime.tokenizer import Tokenizer

FEATURE_BYTES = 256 * 2**20
"""Memory that the features of earlier images may take."""

NOISE = "the weights are seeded and have learnt nothing: the answer is noise"


@dataclass(slots=True, kw_only=True)
class Session:
    """One design with its weights, an engine and a tokenizer. It may be asked again and again, by
    one thread; what an image became is kept for the next question about it."""

    design: Design
    engine: Engine
    tokenizer: Tokenizer
    processor: ImageProcessor | None
    """None where the design takes region features and no pixels."""
    chat: ChatTemplate | None = None
    labels: Mapping[int, str] = field(default_factory=dict[int, str])
    """Names of the classes of a classifier."""
    seeded: bool = False
    """Whether the model has learnt nothing."""
    seeded_parts: tuple[str, ...] = ()
    """The parts that have learnt nothing while others have."""
    examine: Callable[[], Sequence[str]] = tuple
    """Names of the weights that are not finite; asked only where the logits are not."""
    load_seconds: float = 0.0
    store: FeatureStore = field(default_factory=lambda: FeatureStore(FEATURE_BYTES))

    def encode_images(
        self, images: object = None, *, videos: object = None, features: object = None
    ) -> list[Encoded]:
        """What the vision part makes of each image, then of each video, to be given to `generate`
        in their place. Images are paths, bytes of files, Pillow images or numpy arrays; videos are
        animated files, folders or lists of frames, or arrays [frames, height, width, 3];
        `features` are those of regions, a safetensors file or an array [regions, width].

        They need not be for one prompt, so that the token budget bounds none of them.

        Raises UsageError where one of them is none, EnvironmentFault where the model's numbers are
        not finite.
        """
        given = [*listed(images, "images"), *listed(videos, "videos")]
        sight = self.sight
        shown = [*self.asker.clips(given, "image"), *sight.regions(features, bool(given))]
        return self._encoded(sight.read(shown), None)

    def generate(
        self,
        prompt: object,
        images: object = None,
        *,
        videos: object = None,
        features: object = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        stop: object = None,
        stream: bool = False,
        cancel: Cancel | None = None,
    ) -> Any:
        """The `Answer` to a prompt about images; of a list of prompts, the list of their answers.

        `prompt` is a text with <image> where an image belongs (without it, images come first), or
        a conversation: [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}].
        Of a batch, `images` and `videos` hold a list for each prompt. With `stream`, a `Stream`
        that yields the text as it is made. A `stop` string ends the answer and is no part of it.
        `cancel`, such as a threading.Event, ends all of it when it is set.

        Raises UsageError where the question does not fit the design, EnvironmentFault where the
        model's numbers are not finite. The session may be used on after either.
        """
        begun = time.perf_counter()
        check_whole("--max-new-tokens", max_new_tokens, 1)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(
                f"cancel {cancel!r}: one with is_set(), such as a threading.Event, is expected"
            )
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        stops = stop_strings(stop)
        if not self.design.generates and (stops or sampling != Sampling(seed=seed)):
            raise UsageError("this design generates no text, so that there is nothing to sample")
        questions, batch = self.asker.questions(prompt, images, videos)
        if features is not None:
            questions = self._with_features(questions, features)
        limit = max_new_tokens if self.design.generates else 0
        layouts = self.laid_out(questions, limit, batch)
        read: list[Encoded | Pixels] = []
        for number, question in enumerate(questions, start=1):
            with of_prompt(number if batch else None):
                read.extend(self.sight.read(question.shown))
        ready = time.perf_counter()
        speakers = [Speaker(self.tokenizer, sampling, row, stops) for row in range(len(layouts))]
        made = Stream(layouts, speakers, batch=batch, prepare_seconds=ready - begun)
        made.begin(self._pieces(layouts, read, speakers, limit, cancel, made))
        if stream:
            return made
        made.finished()
        return made.answers if batch else made.answer

    def chatted(self, prompt: str, images: int) -> list[dict[str, Any]]:
        """A conversation of one message, as `generate` takes it: images first, then a text."""
        if images == 0 and self.chat is not None and not self.chat.takes_parts():
            return [{"role": "user", "content": prompt}]
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]

    def to_json(self, answer: Answer) -> dict[str, Any]:
        """What `vlmc run --json` and run.py's print."""
        said = answer.to_json()
        return {
            "version": 1,
            "name": self.design.name,
            "engine": self.engine.name,
            "seeded": self.seeded,
            "seeded_parts": list(self.seeded_parts),
            **said,
            "seconds": {"load": round(self.load_seconds, 4), **said["seconds"]},
        }

    @property
    def asker(self) -> Asker:
        """What reads the questions of callers."""
        return Asker(design=self.design, tokenizer=self.tokenizer, chat=self.chat)

    @property
    def sight(self) -> Sight:
        """What reads and encodes images."""
        return Sight(
            design=self.design,
            engine=self.engine,
            processor=self.processor,
            store=self.store,
            seeded=self.seeded,
        )

    def _with_features(self, questions: list[Question], features: object) -> list[Question]:
        (question, *rest) = questions
        if rest:
            raise UsageError("--features: the features of one image, but there are several prompts")
        shown = tuple(self.sight.regions(features, bool(question.shown)))
        return [Question(prompt=question.prompt, shown=shown, surrounded=question.surrounded)]

    def laid_out(
        self, questions: Sequence[Question], limit: int, batch: bool = False
    ) -> list[Layout]:
        """Every prompt as tokens. Raises UsageError where one does not fit, before the model
        runs."""
        most = getattr(self.engine, "most_rows", None)  # only graphs have a bound
        check_rows(self.engine.name, len(questions), most)
        layouts: list[Layout] = []
        for number, question in enumerate(questions, start=1):
            with of_prompt(number if batch else None):
                layouts.append(self._layout(question, limit))
        self.sight.check_alike([one for question in questions for one in question.shown])
        return layouts

    def _layout(self, question: Question, limit: int) -> Layout:
        sight = self.sight
        check_images(self.design, len(question.shown))
        sight.check_own(question.shown)
        layout = laid_out(
            self.design,
            self.tokenizer,
            question.prompt,
            [self.design.positions[sight.frames(one) - 1] for one in question.shown],
            surrounded=question.surrounded,
            notes=(*sight.notes(question.shown), *self._origin_notes()),
        )
        check_context(self.design, layout.inputs, limit, self.engine.capacity)
        if not self.design.generates:
            check_masks(self.design, self.tokenizer, layout.ids.tolist())
        return layout

    def _origin_notes(self) -> tuple[str, ...]:
        if self.seeded:
            return (NOISE,)
        if not self.seeded_parts:
            return ()
        named = ", ".join(self.seeded_parts)
        noise = NOISE.replace("the weights", "theirs")
        return (f"no weights were given for these parts: {named}; {noise}",)

    def _pieces(
        self,
        layouts: Sequence[Layout],
        read: Sequence[Encoded | Pixels],
        speakers: Sequence[Speaker],
        limit: int,
        cancel: Cancel | None,
        stream: Stream,
    ) -> Iterator[tuple[int, str]]:
        """The text of every row as it is made."""
        encoded = self._encoded(read, cancel)
        if cancel is not None and cancel.is_set():
            return
        left = iter(encoded)
        rows = [
            layout.row([next(left).feature for _ in range(layout.inputs.images)])
            for layout in layouts
        ]
        try:
            if self.design.generates:
                yield from self._spoken(rows, speakers, limit, cancel)
            else:
                yield from self._judged(rows, speakers, stream)
        except EnvironmentFault as error:
            raise EnvironmentFault(self._reason(str(error))) from None

    def _encoded(self, read: Sequence[Encoded | Pixels], cancel: Cancel | None) -> list[Encoded]:
        try:
            return self.sight.encode(read, cancel)
        except EnvironmentFault as error:
            raise EnvironmentFault(self._reason(str(error))) from None

    def _spoken(
        self,
        rows: Sequence[Row],
        speakers: Sequence[Speaker],
        limit: int,
        cancel: Cancel | None,
    ) -> Iterator[tuple[int, str]]:
        state, logits = self.engine.prefill(rows)
        for count in range(1, limit + 1):
            for row, speaker in enumerate(speakers):
                if speaker.finish is None:
                    yield row, speaker.hear(logits[row])
            if all(speaker.finish for speaker in speakers):
                return
            if cancel is not None and cancel.is_set():
                return
            if count < limit:
                tokens = np.array([speaker.last for speaker in speakers], np.int64)
                logits = self.engine.step(state, tokens)
        for row, speaker in enumerate(speakers):
            if speaker.finish is None:
                yield row, speaker.end("length")

    def _judged(
        self, rows: Sequence[Row], speakers: Sequence[Speaker], stream: Stream
    ) -> Iterator[tuple[int, str]]:
        outputs = self.engine.answer(rows)
        for number, (row, speaker) in enumerate(zip(rows, speakers, strict=True)):
            own = {name: values[number] for name, values in outputs.items()}
            ids = row.ids.tolist()
            said = judged(self.design, self.tokenizer, self.labels, ids, own)
            speaker.text, stream.choices[number] = said
            speaker.finish = "stop"
            yield number, speaker.text

    def _reason(self, message: str) -> str:
        """Why logits are not finite: the weights, where they are not either."""
        bad = self.examine()
        if not bad:
            return message
        return (
            "the model's numbers are not finite, because weights are not: "
            f"{named_tensors(bad)}; {DAMAGED}: load another copy"
        )
