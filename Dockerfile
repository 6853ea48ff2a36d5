# syntax=docker/dockerfile:1

# vidtrain on CUDA. Build:  docker build --tag vidtrain .
#
# Three places outside the container (docs/docker.md has the full command lines):
#   /data    the videos; mount them read-only
#   /models  what is downloaded or made once (TORCH_HOME, HF_HOME, VIDTRAIN_CACHE); keep it
#   /runs    what training, evaluation and export write
#
# The working folder is /, so that `runs/NAME` means the same inside and outside.

# The same Python as in the image below. Only the finished wheel leaves this stage.
FROM python:3.12.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY scripts/launch ./scripts/launch
COPY vidtrain ./vidtrain
COPY hydra_plugins ./hydra_plugins
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The last PyTorch that is built for CUDA 12.8: drivers of the 12.x series will do, and Blackwell
# is supported.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The image's Python belongs to the image alone, so pip may install beside the system's packages.
# The constraints keep the image's own torch and torchvision, which match its CUDA.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m pip freeze | grep -E '^(torch|torchvision|triton)==' > /opt/torch-constraints.txt \
    && python -m pip install --no-cache-dir --constraint /opt/torch-constraints.txt /wheels/*.whl

# Not root. The folders are open to all, so that `--user "$(id -u):$(id -g)"` works as well;
# LOGNAME is for libraries that ask who they are, which an unknown user id cannot answer.
RUN useradd --uid 10001 --create-home vidtrain \
    && mkdir /data /models /runs \
    && chmod 1777 /models /runs /home/vidtrain
ENV HOME=/home/vidtrain \
    LOGNAME=vidtrain \
    HF_HOME=/models/huggingface \
    TORCH_HOME=/models/torch \
    VIDTRAIN_CACHE=/models/vidtrain \
    PYTHONUNBUFFERED=1
VOLUME ["/models", "/runs"]
WORKDIR /
USER 10001
ENTRYPOINT ["vidtrain"]
