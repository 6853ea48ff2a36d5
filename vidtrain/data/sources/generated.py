"""A list of videos that are not there: what a trial without the data goes by."""

from collections.abc import Sequence

from vidtrain.data.video import Video, VideoList


def generated(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    num_classes: int,
    num_train: int,
    num_val: int,
) -> VideoList:
    """Returns as many videos as a split has, spread evenly over the classes.

    Args:
        root: Not looked at.
        split: train or val.
        class_names: Names by label; None: numbers.
        num_classes: Classes.
        num_train: Videos of the training split.
        num_val: Videos of the validation split.
    """
    names = tuple(class_names or (f"class {label}" for label in range(num_classes)))
    count = num_train if split == "train" else num_val
    videos = (Video(path="", label=index % num_classes, id=f"{split}/{index}")
              for index in range(count))  # fmt: skip
    return VideoList(tuple(videos), names)
