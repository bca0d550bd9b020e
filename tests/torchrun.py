"""Run by test_processes.py: calls of a script's main, one after another, each in processes of torchrun's launcher.

They are forked from this process, which has imported everything once, and not every process of every call.
"""

import json
import sys
from importlib import import_module

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def main(script: str, calls: str) -> None:
    function = import_module(script).main
    for processes, *arguments in json.loads(calls):
        config = LaunchConfig(
            1, 1, processes, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork"
        )
        elastic_launch(config, function)(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
