"""Unreadable videos met while training: counted, said, and too many of them end the run."""

from dataclasses import dataclass, field

from vidtrain import distributed
from vidtrain.data.video import VideoList
from vidtrain.distributed import World
from vidtrain.errors import InputError
from vidtrain.records.runlog import console


@dataclass
class BadVideos:
    """The unreadable videos of a run.

    Attributes:
        budget: Most different videos that others may stand in for.
        share: Share of the training videos that the budget was set as.
        found: What was wrong, by the video's id.
        unsaid: Whether other processes do not know of some yet.
    """

    budget: int
    share: float
    found: dict[str, str] = field(default_factory=dict)
    unsaid: bool = False

    def add(self, bad: dict[int, str], videos: VideoList) -> None:
        """Notes what a batch met, and says it once for each video.

        Args:
            bad: What was wrong, by index into the list.
            videos: The training split.

        Raises:
            InputError: The budget is used up; the message lists the videos.
        """
        for index, reason in bad.items():
            name = videos.videos[index].id
            if name not in self.found:
                self.found[name], self.unsaid = reason, True
                console.print(
                    f"another video stands in for {name} ({len(self.found)} of at most "
                    f"{self.budget}): {reason}", markup=False,
                )  # fmt: skip
        self.check()

    def check(self) -> None:
        """Ends the run where there are too many.

        Raises:
            InputError: The budget is used up; the message lists the videos.
        """
        if len(self.found) <= self.budget:
            return
        listed = "".join(f"\n  {name}: {reason}" for name, reason in self.found.items())
        raise InputError(
            f"{len(self.found)} videos cannot be read, more than data.max_bad_fraction="
            f"{self.share:g} allows ({self.budget}). `vidtrain check` lists all of them in a file "
            f"for data.quarantine.{listed}"
        )

    def agree(self, world: World) -> None:
        """Makes what one process has met known to all.

        Raises:
            InputError: All together have met too many.
        """
        if world.size > 1 and distributed.any_true(self.unsaid, world):
            shards = distributed.gather(self.found, world)
            merged = {name: text for shard in shards for name, text in shard.items()}
            self.found = distributed.share(dict(sorted(merged.items())), world)
        self.unsaid = False
        self.check()
