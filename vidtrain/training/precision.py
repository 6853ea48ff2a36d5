"""fp32, tf32, bf16 and fp16: autocast, loss scaling, and an early word where a device cannot."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional

from vidtrain.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def allow_tf32(allowed: bool) -> None:
    """Sets whether CUDA may round the factors of fp32 products to TF32's 10 bits of mantissa.

    PyTorch 2.9 brought other names for these switches (`fp32_precision`). Reading an old name is an
    error once a new one was set to "tf32"; after the old ones, set here, both can be read.

    Args:
        allowed: For convolutions, recurrent layers and matrix products alike. By themselves PyTorch
            would allow it for convolutions only.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*", category=UserWarning)
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


class Precision:
    """Arithmetic of one run.

    Attributes:
        dtype: Type that autocast computes in; float32 means no autocast.
        scaler: Loss scaler, enabled for fp16 only (Micikevicius et al., ICLR 2018, section 3.2).
    """

    def __init__(self, name: str, device: torch.device, *, tf32: bool = False) -> None:
        """Checks that the device can train in this precision.

        Args:
            name: fp32, bf16 or fp16.
            device: Where the model will be.
            tf32: Allow TF32 in fp32 convolutions and matrix products (CUDA). The switch is the
                process's: the latest Precision decides.

        Raises:
            UsageError: Unknown name, or the device cannot; the message says why.
        """
        if name not in DTYPES:
            raise UsageError(f"precision.dtype={name!r} is unknown; use one of {', '.join(DTYPES)}")
        self.dtype = DTYPES[name]
        self.device = device
        allow_tf32(tf32)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if name != "fp32":
            self._probe(name)

    def autocast(self) -> AbstractContextManager:
        """Returns the context of one forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _probe(self, name: str) -> None:
        """Runs one tiny 3-D convolution and linear layer, forward and backward."""
        with torch.random.fork_rng(devices=[]):
            conv, linear = nn.Conv3d(3, 4, 3, groups=1), nn.Linear(4, 2)
        conv, linear = conv.to(self.device), linear.to(self.device)
        clip = torch.zeros(1, 3, 4, 8, 8, device=self.device)
        try:
            with self.autocast():
                logits = linear(functional.relu(conv(clip)).mean((2, 3, 4)))
            self.scaler.scale(logits.float().sum()).backward()
        except RuntimeError as error:
            raise UsageError(
                f"precision={name} cannot train on {self.device.type} with torch "
                f"{torch.__version__}: {str(error).splitlines()[0]}; use precision=bf16 or fp32"
            ) from error
