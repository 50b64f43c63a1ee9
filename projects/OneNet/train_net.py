#!/usr/bin/env python3
"""Train or evaluate OneNet, or replay a bad batch; the same program as ``onenet train``."""

from onenet.api.train import main

if __name__ == "__main__":
    main()
