#!/usr/bin/env python3
"""Train or evaluate OneNet; see ``--help``."""

from onenet.cli import load_engine, training_parser


def main() -> None:
    args = training_parser().parse_args()
    load_engine(args.engine).run(args)


if __name__ == "__main__":
    main()
