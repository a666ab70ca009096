"""Convert an official Proteina Lightning checkpoint to safetensors + JSON, without executing anything in it."""

from __future__ import annotations

import argparse
import json
import sys

from xdistill.domains.protein.checkpoint import convert, load_network
from xdistill.errors import UsageError, XDistillError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ckpt", help="official .ckpt file; a file -EMA.ckpt beside it is preferred")
    parser.add_argument("out", help="directory, or name of the .safetensors file to write")
    parser.add_argument(
        "--class-map", help="CATH class map: JSON, cath_label_mapping.pt, or the directory that holds it"
    )
    parser.add_argument("--no-ema", action="store_true", help="read this very file even if an -EMA.ckpt lies beside it")
    parser.add_argument("--lora-alpha", type=float, help="LoRA scale (default: the checkpoint's, or 32)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=JSON", help="override network configuration values"
    )
    args = parser.parse_args(arguments)
    try:
        weights = convert(
            args.ckpt,
            args.out,
            config=_overrides(args.set),
            class_map=args.class_map,
            prefer_ema=not args.no_ema,
            lora_alpha=args.lora_alpha,
        )
        loaded = load_network(weights)
    except XDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    count = sum(p.numel() for p in loaded.net.parameters())
    print(f"{weights}: {count:,} parameters, weights {loaded.provenance['weights']}, predicts {loaded.target_pred}")
    return 0


def _overrides(pairs: list[str]) -> dict[str, object]:
    try:
        return {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    except ValueError as error:
        raise UsageError(f"--set takes KEY=JSON, such as --set nlayers=10: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
