"""Show what this build of gru_fast is and which backend serves which device.

backends: native     the kernels of this package
          reference  the same in plain PyTorch: slower, on any device
"""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "versions, CPU and CUDA kernels, devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from gru_fast.core.info import build_info

    info = build_info()
    print(json.dumps(info, indent=2) if args.json else report(info))
    return 0


def report(info: dict[str, Any]) -> str:
    """The content of `build_info` for people to read."""
    from gru_fast.core.backends import mend_cuda

    cpu, cuda = info["cpu"], info["cuda"]
    levels = ", ".join(cpu["available_levels"])
    lines = [
        f"gru_fast  {info['version']} ({info['build_type']}, {info['compiler']})",
        f"torch     {info['torch']}",
        f"CPU       {cpu['vector_level']} (available: {levels}), {cpu['threads']} threads of {cpu['thread_source']}",
    ]
    if cuda["version"]:
        lines.append(f"CUDA      {cuda['version']} for {', '.join(cuda['architectures'])}")
    else:
        lines.append(f"CUDA      no kernels: {cuda['reason']}")
    if cuda["problem"]:
        lines.append(f"          they run on no device here: {cuda['problem']}")
    lines.append("devices")
    lines += [f"  {found['device']:<7} {found['backend']:<10} {found['name']}" for found in info["devices"]]
    useless = not cuda["version"] or cuda["problem"]
    if useless and any(found["device"].startswith("cuda") for found in info["devices"]):
        lines.append(f"To build the CUDA kernels, in a checkout: {mend_cuda()}")
    return "\n".join(lines)
