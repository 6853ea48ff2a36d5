"""The knobs of processes that train one model together; see `config`."""

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    """How a training is spread over processes.

    Attributes:
        kind: ddp, every process has the whole network; or fsdp, each has a part of every layer.
        timeout_seconds: Longest time that processes wait for one of them before all end.
        compress: Type that gradients travel in: null, their own, or bf16. DDP only.
        bucket_mb: Size of the pieces that gradients travel in, MB. DDP only.
        static_graph: Every step uses the same parameters, in the same order. DDP only.
        find_unused: Look in each step for parameters that were not used. DDP only.
        reshard: Give the other processes' parts back after the forward pass, and fetch them again
            for the backward pass: less memory, more traffic. FSDP only.
        gather: Type that weights travel in and layers compute in: null, their own, or bf16. FSDP
            only.
    """

    kind: str = "ddp"
    timeout_seconds: float = 600.0
    compress: str | None = None
    bucket_mb: float = 25.0
    static_graph: bool = False
    find_unused: bool = False
    reshard: bool = True
    gather: str | None = None
