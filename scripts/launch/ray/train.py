"""A vidtrain training on a Ray cluster: one process per Ray worker, all restarted on failure.

    pip install 'ray[train]'
    python scripts/launch/ray/train.py --workers 8 --gpu -- train model=slowfast_r50 data=...

The run folder must be on a disk that all machines share: a training that was started again goes on
from its last checkpoint there.
"""

import argparse
import os
import socket
import subprocess
import sys

import ray.train  # type: ignore[import-not-found]
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer  # type: ignore[import-not-found]


def in_worker(config: dict) -> None:
    """Runs the command as one process of the training, under the variables that torchrun would set.

    It is a process of its own, since Ray has formed a process group in this one.
    """
    with socket.create_server(("", 0)) as place:
        told: list = [ray.util.get_node_ip_address(), place.getsockname()[1]]
    dist.broadcast_object_list(told)  # of rank 0
    context = ray.train.get_context()
    variables = {
        "RANK": context.get_world_rank(), "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(), "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": told[0], "MASTER_PORT": told[1],
        "VIDTRAIN_LAUNCHED": 1,  # it saves and ends when this worker is gone
    }  # fmt: skip
    command = [sys.executable, "-m", "vidtrain", *config["command"]]
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    code = subprocess.run(command, env=environment, cwd=config["folder"], check=False).returncode
    if code:
        raise RuntimeError(f"vidtrain on rank {variables['RANK']} ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, required=True, help="processes in all")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each")
    parser.add_argument("--cpus", type=int, default=8, help="cores of each")
    parser.add_argument("--max-failures", type=int, default=3, help="times that all start again")
    parser.add_argument("--storage", default="runs/ray", help="a shared folder for Ray's own files")
    parser.add_argument("command", nargs="+", help="-- and then a vidtrain command")
    given = parser.parse_args()
    trainer = TorchTrainer(
        in_worker,
        train_loop_config={"command": given.command, "folder": os.getcwd()},
        torch_config=TorchConfig(backend="gloo"),  # Ray's own group carries one address only
        scaling_config=ray.train.ScalingConfig(
            num_workers=given.workers, use_gpu=given.gpu, resources_per_worker={"CPU": given.cpus}
        ),
        run_config=ray.train.RunConfig(
            storage_path=os.path.abspath(given.storage),
            failure_config=ray.train.FailureConfig(max_failures=given.max_failures),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
