"""Visual tokens among words."""

from torch import Tensor


def check_described(images: int, image_sizes: Tensor | None, image_grid_thw: Tensor | None) -> None:
    """Raises ValueError unless what a processor says of the images has a row for each.

    `image_sizes` [images, 2] and `image_grid_thw` [images, 3] tell encoders of varying resolution
    how to read pixels; to one of fixed size they say nothing new.
    """
    for described in (image_sizes, image_grid_thw):
        if described is not None and described.shape[0] != images:
            raise ValueError(f"{described.shape[0]} image sizes for {images} images")


def fill_places(words: Tensor, is_place: Tensor, features: Tensor) -> Tensor:
    """Words [batch, text, width] with visual tokens [images, tokens, width] in the places marked in
    `is_place` [batch, text], in the order in which they stand in the batch.

    Raises ValueError unless there are as many places as visual tokens, and in each row as many as
    whole images have.
    """
    images, tokens, _ = features.shape
    if int(is_place.sum()) != images * tokens:
        raise ValueError(
            f"{int(is_place.sum())} placeholders in input_ids but {images * tokens} visual tokens "
            f"from {images} images"
        )
    if bool((is_place.sum(dim=1) % tokens).any()):
        raise ValueError(
            f"the placeholders of a row of input_ids are no multiple of the {tokens} visual tokens "
            "of an image"
        )
    return words.masked_scatter(is_place[..., None], features.to(words.dtype))
