"""The knobs of `vidtrain launch`; see `config`."""

from dataclasses import dataclass, field


@dataclass
class LaunchConfig:
    """Root of `vidtrain launch`.

    Attributes:
        engine: What starts the processes: slurm, kubernetes or torchrun.
        command: The stage and its overrides; what follows `--` on the command line.
        dry_run: Print what would be submitted or run, and do nothing (also --dry-run).
        nodes: Machines; torchrun and slurm also take MIN:MAX.
        processes_per_node: Processes of one machine; null: one per GPU, or one.
        max_restarts: Times that torchrun starts all processes again after one has failed; null: 3
            for a training, which goes on from its last checkpoint, else 0.
        grace_seconds: Time that processes get to save their state after a signal. (torch gives
            them 30 s when a machine joins or another process has failed.)
        join_seconds: Longest time that machines wait for one another.
        gpus_per_node: GPUs to ask for on each machine. slurm, kubernetes.
        cpus_per_process: Cores to ask for per process. slurm, kubernetes.
        memory_gb: Memory to ask for on each machine, GB; null: what the cluster gives. slurm,
            kubernetes.
        env: Variables to set for the training: 'env=["NCCL_DEBUG=INFO"]'. slurm,
            kubernetes.
        name: Of the job; null: the run's. slurm, kubernetes.
        partition: Slurm's, null: its default.
        account: Slurm's, null: its default.
        time: Slurm's time limit, such as 24:00:00; null: the partition's.
        options: More words for sbatch: 'options=["--constraint=a100","--exclusive"]'.
        setup: Shell lines to run on each node first: setup=['module load cuda']. slurm.
        max_requeues: Times that a stopped job is queued again; null: 100 where the same command
            goes on from where it stopped, else 0. slurm.
        max_failures: Times that a failed job is started again. kubernetes.
        image: Container image. kubernetes.
        namespace: Kubernetes' namespace; null: the present one.
        volumes: Claims to mount, as CLAIM:PATH or CLAIM:PATH:ro. kubernetes.
        shm_gb: Size of /dev/shm, through which loader processes hand over batches, GB; counts as
            memory. kubernetes.
        gpu_resource: Kubernetes' name of a GPU.
        endpoint: Where the machines meet: HOST:PORT of one of them. torchrun.
        node_rank: Number of this machine; 0 holds the meeting place. null: the machine whose
            address `endpoint` is does. torchrun.
        job_id: Tells jobs apart that meet at one place. torchrun.
        local_addr: Address at which the others reach this machine; null: its host name. torchrun.
        interface: Network interface for gloo and NCCL; null: their choice. torchrun, slurm.
    """

    engine: str = ""
    command: list[str] = field(default_factory=list)
    dry_run: bool = False
    nodes: str = "1"
    processes_per_node: int | None = None
    max_restarts: int | None = None
    grace_seconds: int = 120
    join_seconds: int = 900
    gpus_per_node: int = 1
    cpus_per_process: int = 8
    memory_gb: int | None = None
    env: list[str] = field(default_factory=list)
    name: str | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    options: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    max_requeues: int | None = None
    max_failures: int = 10
    image: str | None = None
    namespace: str | None = None
    volumes: list[str] = field(default_factory=list)
    shm_gb: int = 16
    gpu_resource: str = "nvidia.com/gpu"
    endpoint: str | None = None
    node_rank: int | None = None
    job_id: str = "vidtrain"
    local_addr: str | None = None
    interface: str | None = None
