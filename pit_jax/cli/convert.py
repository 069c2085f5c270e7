"""Converts weights between torch files and ours.

    pit-convert --model=pit_s --input=pit_s_809.pth --output=pit_s.safetensors
    pit-convert --input=hf:timm/pit_s_224.in1k --output=pit_s.safetensors --verify
    pit-convert --input=pit_s.safetensors --output=pit_s.pth --to=torch --layout=official

From a checkout, `python convert_torch_weights.py` is the same program.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pit_jax.cli import console
from pit_jax.weights.cards import make_card
from pit_jax.weights.load import HEAD_CHOICES, HeadError, fit, to_torch
from pit_jax.weights.match import Match, identify
from pit_jax.weights.read import read
from pit_jax.weights.verify import agrees, verify
from pit_jax.weights.write import check_suffix, write_torch, write_weights

PROGRAM = "pit-convert"
FAILED_VERIFICATION = 1
ERROR = 2


def run(argv: Sequence[str] | None = None) -> int:
    """Converts weights by the flags of a command line.

    Returns:
      0, 1 if --verify finds a difference, or 2 after an error, which is printed on stderr. The
      output is written only in the first case.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return convert(_parser().parse_args(arguments), shlex.join([PROGRAM, *arguments]))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return ERROR


def _parser() -> console.Parser:
    parser = console.Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("--model", help="a name of pit_jax.list_models() (default: the one that fits the file)")
    add("--input", required=True, help="a file, a run directory or hf:owner/name[@revision]")
    add("--output", required=True, type=Path, help="the file to write")
    add("--to", default="jax", choices=("jax", "torch"), help="format of the output")
    add(
        "--layout",
        help="names in a torch file: official (PiT's default), timm; PSViT: torch",
    )
    add("--image_size", type=_image_size, help="SIZE or HEIGHT,WIDTH (default: the file's)")
    add("--num_classes", type=int, help="classes of the output (default: the file's)")
    add("--head", default="load", choices=HEAD_CHOICES, help="new: fresh, if the classes differ")
    add("--verify", action="store_true", help="compare with timm's model before writing")
    return parser


def _image_size(text: str) -> tuple[int, int]:
    try:
        return console.image_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def convert(args: argparse.Namespace, command: str) -> int:
    """Reads, fits, optionally verifies, and writes the weights; prints the card."""
    _check_output(args)
    file = read(args.input)
    found = identify(file, args.model, image_size=args.image_size, num_classes=args.num_classes)
    layout = _torch_layout(args, found) if args.to == "torch" else ""
    try:
        params = fit(found, head=args.head)
    except HeadError as error:
        raise ValueError(f"{error}; here --head=new") from error
    card = make_card(
        found.name,
        found.config,
        source=file.source,
        sha256=file.sha256,
        layout=found.layout,
        command=command,
        torch_version=file.torch_version,
        parent=file.card,
    )
    if args.verify:
        differences = verify(found, params)
        print(f"largest differences from timm's {found.name} on the same weights and images:")
        for difference in differences:
            print(f"  {difference}")
        if not agrees(differences):
            print(f"{PROGRAM}: the logits differ; nothing is written", file=sys.stderr)
            return FAILED_VERIFICATION
    if args.to == "torch":
        write_torch(args.output, to_torch(params, found.config, layout), card)
    else:
        write_weights(args.output, params, card)
    print(json.dumps(card, indent=2))
    print(f"wrote {args.output}")
    return 0


def _torch_layout(args: argparse.Namespace, found: Match) -> str:
    """The layout of the torch file to write: --layout, or the family's first."""
    layouts = found.table.layouts
    if not layouts:
        raise ValueError(
            f"{found.name} has no torch layout, so it cannot be written with --to=torch; write it "
            "with --to=jax"
        )
    layout = args.layout or layouts[0]
    found.table.check_layout(layout)
    return layout


def _check_output(args: argparse.Namespace) -> None:
    """Refuses an output that cannot be written, before any work is done."""
    if args.to != "torch" and args.layout:
        raise ValueError("--layout applies to torch files only: add --to=torch")
    folder = args.output.parent
    if not folder.is_dir() or args.output.is_dir():
        raise ValueError(f"--output={args.output} is not a file in an existing directory")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--output={args.output}: the directory {folder} is not writable")
    check_suffix(args.output, torch=args.to == "torch")
