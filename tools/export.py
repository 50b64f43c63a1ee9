"""Export a trained detector to one file that other programs run: ONNX, or torch.export's .pt2.

    python tools/export.py --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \
        --format onnx --output model.onnx --opts MODEL.WEIGHTS path/to/model.pth

The same program as ``onenet export``.
"""

from onenet.api.export import main

if __name__ == "__main__":
    main()
