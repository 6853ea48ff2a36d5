"""Makes videos to measure with out of real ones: ten seconds each, at two sizes and two GOPs.

    python scripts/benchmark_clips.py DIR VIDEO [VIDEO ...]
    vidtrain benchmark input files=DIR

Each source is played forwards and backwards until ten seconds are full, at 30 frames per second,
scaled and cut to 340x256 (GOP 250 and 12) and 1280x720 (GOP 250), x264 medium, crf 23. The last
come with prepared copies. Sources smaller than a size are scaled up and say so: such files are
smoother, and so easier to decode, than real ones.
"""

import argparse
import sys
from pathlib import Path

from vidtrain.benchmarking.encoding import write_groups
from vidtrain.data.packets import packet_table
from vidtrain.errors import InputError

# Height -> height, width and GOP of the files that are written.
SIZES = {
    "256": [(256, 340, 250), (256, 340, 12)],
    "720": [(720, 1280, 250)],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("videos", type=Path, nargs="+", help="source videos")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="heights")
    args = parser.parse_args(arguments)
    sizes = [written for size in args.sizes for written in SIZES[size]]
    scenes = [(f"{number:02d}_{path.stem}", path) for number, path in enumerate(args.videos)]
    try:
        for _, path in scenes:
            height = packet_table(str(path)).height
            for size in args.sizes:
                if height < int(size):
                    print(f"{path} is {height} pixels high: scaled up to {size}", file=sys.stderr)
        for written in write_groups(args.output, scenes, sizes):
            print(f"{written} {written.stat().st_size / 1000:.0f} kB")
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
