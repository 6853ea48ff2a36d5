#!/bin/sh
# Sets up MMAction2 in a virtual environment of its own, for `vidtrain benchmark input`.
#
#   sh scripts/mmaction2_env.sh DIR
#   vidtrain benchmark input peers=[pytorchvideo,mmaction2] mmaction2_python=DIR/bin/python
#
# MMAction2 1.2.0 wants mmcv below 2.2.0; mmcv-lite is mmcv without compiled operators, none of
# which its input pipeline uses. Both name packages that are not needed here (opencv-contrib-python,
# opencv-python with its window system), so they are installed without their dependencies.
#
# PYTHON=python3.11   interpreter to make the environment with; 3.9 to 3.12
# TORCH=torch==2.8.0  another PyTorch than the newest one, as pip takes it
set -eu
if [ $# -ne 1 ]; then
    echo "usage: [PYTHON=python3] [TORCH=torch] sh $0 DIR" >&2
    exit 2
fi
"${PYTHON:-python3}" -m venv "$1"
pip="$1/bin/python -m pip --disable-pip-version-check install --quiet"
$pip "${TORCH:-torch}" numpy opencv-python-headless decord einops scipy pillow matplotlib \
    addict packaging pyyaml rich termcolor yapf setuptools
$pip --no-deps mmengine==0.10.7 mmcv-lite==2.1.0 mmaction2==1.2.0
MPLBACKEND=agg "$1/bin/python" -c '
import cv2, decord, mmcv, mmengine, torch
import mmaction
from mmaction.datasets import VideoDataset
print("mmaction2", mmaction.__version__, "mmengine", mmengine.__version__, "mmcv-lite",
      mmcv.__version__, "torch", torch.__version__, "decord", decord.__version__, "opencv",
      cv2.__version__)'
