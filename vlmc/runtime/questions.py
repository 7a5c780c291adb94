"""From what a caller asks to prompts with their images in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.chat import ChatTemplate, conversation_of
from vlmc.runtime.choices import MASKS
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Pixels
from vlmc.runtime.features import Encoded
from vlmc.runtime.media import Clip, clip_of, listed, named_once, one_video
from vlmc.runtime.picture import Source, source_of
from vlmc.runtime.prompt import FENCE, MARKER, count_markers
from vlmc.runtime.specials import guarded
from vlmc.runtime.tokenizer import Tokenizer

VIDEO_MARKER = "<video>"
"""What a prompt may hold where a video belongs; an image's marker does as well."""

Shown = Clip | Encoded | Pixels
"""One image of a question: to be read, encoded before, or the features of its regions."""

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt of a batch."""

    prompt: str
    """With a marker for each image, or without any where all stand in front."""
    shown: tuple[Shown, ...]
    surrounded: bool = False
    """Whether the prompt brings the tokens around a text itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Reads what callers ask of a design."""

    design: Design
    tokenizer: Tokenizer
    chat: ChatTemplate | None

    def questions(
        self, prompt: object, images: object, videos: object
    ) -> tuple[list[Question], bool]:
        """The questions, and whether they are a batch: `prompt` is a text, a conversation, or a
        list of them; of a batch, `images` and `videos` hold those of each.

        Raises UsageError for anything else, and for images that are none.
        """
        if isinstance(prompt, str) or _is_conversation(prompt):
            one = self._question(prompt, listed(images, "images"), listed(videos, "videos"))
            return [one], False
        if not isinstance(prompt, list | tuple):
            kind = "None" if prompt is None else type(prompt).__name__
            raise UsageError(f"prompt: a text, a conversation, or a list of them, not {kind}")
        batch = list(cast("Sequence[object]", prompt))
        if not batch:
            raise UsageError("prompt: the list is empty; give one text or more")
        for number, one in enumerate(batch, start=1):
            if not isinstance(one, str) and not _is_conversation(one):
                kind = type(one).__name__
                raise UsageError(f"prompt {number}: a text or a conversation, not {kind}")
        each = zip(
            batch,
            _of_each(images, len(batch), "images"),
            _of_each(videos, len(batch), "videos"),
            strict=True,
        )
        questions: list[Question] = []
        for number, one in enumerate(each, start=1):
            with of_prompt(number):
                questions.append(self._question(*one))
        return questions, True

    def clips(self, given: Sequence[object], what: str) -> list[Shown]:
        """Every image of a list, in order. Raises UsageError that says which of them is none."""
        return [self._clip(one, f"{what} {n}") for n, one in enumerate(given, start=1)]

    def _question(self, asked: object, images: list[object], videos: list[object]) -> Question:
        if isinstance(asked, str):
            prompt, given = _ordered(asked, images, videos)
            prompt = guarded(prompt, self._steering() - {MARKER, self._image_word()})
            return Question(prompt=prompt, shown=self._shown(given, prompt))
        return self._from_conversation(asked, images, videos)

    def _from_conversation(
        self, asked: object, images: list[object], videos: list[object]
    ) -> Question:
        if self.chat is None:
            raise UsageError(
                "there is no chat template with these weights (chat_template.jinja, or "
                "tokenizer_config.json): give the prompt as text"
            )
        word = self._image_word()
        messages, pictures = conversation_of(asked, (MARKER, VIDEO_MARKER, word))
        words = self._steering()
        text = self.chat.render([_guarded_all(message, words) for message in messages])
        if self.tokenizer.id(FENCE) is not None:
            text = text.replace(FENCE, "")  # it is put around each image below
        text = text.replace(word, MARKER)
        waiting = {"image": iter(images), "video": iter(videos)}
        given: list[object] = []
        for kind, picture in pictures:
            found = next(waiting[kind], None) if picture is None else picture
            if found is None:
                raise UsageError(
                    f"the conversation has an {kind} without a picture: put it into the part, "
                    f'{{"type": "{kind}", "{kind}": PATH}}, or give it with {kind}s='
                )
            given.append(found)
        rest = [one for kind in waiting.values() for one in kind]
        if rest:
            count = len(rest)
            raise UsageError(
                f"{count} of the images {'has' if count == 1 else 'have'} no place in the "
                f'conversation: write a part {{"type": "image"}} for each'
            )
        text = text.replace(VIDEO_MARKER, MARKER)
        start = self.tokenizer.decode_all(self.tokenizer.start)
        surrounded = bool(start) and text.startswith(start)
        return Question(prompt=text, shown=self._shown(given, text), surrounded=surrounded)

    def _steering(self) -> set[str]:
        """Words that a user's text may hold as text alone. The masked words of a design that fills
        them in are the user's to write."""
        own = MASKS if self.design.head == "masked_lm" else ()
        return {
            MARKER,
            VIDEO_MARKER,
            FENCE,
            self._image_word(),
            *self.tokenizer.specials.tokens,
        } - {*own}

    def _image_word(self) -> str:
        """What the tokenizer calls the placeholder of an image."""
        token = self.design.image_token
        found = None if token is None else self.tokenizer.file.id_to_token(token)
        return found or MARKER

    def _shown(self, given: Sequence[object], prompt: str) -> tuple[Shown, ...]:
        """Several stills for a single marker are the frames of one video."""
        several = len(given) > 1 and self.design.frames > 1 and count_markers(prompt) == 1
        if several and not any(isinstance(one, Encoded) for one in given):
            stills = [self._source(one, f"image {n}") for n, one in enumerate(given, start=1)]
            return (one_video(stills, most=self.design.frames),)
        return tuple(self.clips(given, "image"))

    def _clip(self, given: object, name: str) -> Shown:
        if isinstance(given, Encoded):
            return given
        source = self._source(given, name)
        name = source.name if isinstance(source, Path) else name
        try:
            return clip_of(source, name, most=self.design.frames)
        except UsageError as error:
            raise UsageError(named_once(str(error), name)) from None

    def _source(self, given: object, name: str) -> Source:
        try:
            return source_of(given)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None


@contextmanager
def of_prompt(number: int | None) -> Generator[None]:
    """Says of a mistake in which prompt of a batch it is; None: there is but one."""
    try:
        yield
    except UsageError as error:
        if number is None:
            raise
        raise UsageError(f"prompt {number}: {error}") from None


def _is_conversation(given: object) -> bool:
    if not isinstance(given, list | tuple) or not given:
        return False
    return all(isinstance(one, Mapping) for one in cast("Sequence[object]", given))


def _of_each(given: object, count: int, what: str) -> list[list[object]]:
    """The images of each prompt of a batch."""
    rows = listed(given, what)
    if not rows:
        return [[] for _ in range(count)]
    if len(rows) != count:
        raise UsageError(
            f"{what}: of a batch of {count} prompts, a list of {count} is expected, each the "
            f"{what} of one prompt (an empty list for none), but there are {len(rows)}"
        )
    return [listed(row, what) for row in rows]


def _guarded_all(given: Any, words: Iterable[str]) -> Any:
    """A message in which every text is guarded."""
    if isinstance(given, str):
        return guarded(given, words)
    if isinstance(given, Mapping):
        pairs = cast("Mapping[Any, Any]", given).items()
        return {_guarded_all(key, words): _guarded_all(one, words) for key, one in pairs}
    if isinstance(given, list | tuple):
        return [_guarded_all(one, words) for one in cast("Sequence[Any]", given)]
    return given


def _ordered(prompt: str, images: list[object], videos: list[object]) -> tuple[str, list[object]]:
    """Images and videos in the order of their markers; images first where videos have none of
    their own. Only markers of images are left in the prompt."""
    if VIDEO_MARKER not in prompt:
        return prompt, [*images, *videos]
    parts = prompt.split(VIDEO_MARKER)
    if not videos:
        markers = f"{len(parts) - 1} {VIDEO_MARKER} marker{'s' * (len(parts) > 2)}"
        raise UsageError(
            f"the prompt has {markers}, but no videos are given: give them with videos=, or write "
            f"{MARKER} where one is given as an image, or take the word out"
        )
    if len(parts) - 1 != len(videos):
        raise UsageError(
            f"the prompt has {len(parts) - 1} {VIDEO_MARKER} marker{'s' * (len(parts) > 2)}, but "
            f"there are {len(videos)} videos: write one marker for each"
        )
    given: list[object] = []
    left = list(images)
    for part, video in zip(parts, [*videos, None], strict=True):
        here = count_markers(part)
        given.extend(left[:here])
        left = left[here:]
        given.extend([] if video is None else [video])
    return MARKER.join(parts), [*given, *left]
