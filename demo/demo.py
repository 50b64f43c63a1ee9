"""Detect objects in images, folders, videos, streams or a webcam's pictures.

    python demo/demo.py --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \
        --input path/to/images --output path/to/pictures --opts MODEL.WEIGHTS path/to/model.pth

The same program as ``onenet predict``.
"""

from onenet.api.predict import main

if __name__ == "__main__":
    main()
