"""Open a page in the browser: detect in pictures, videos and a camera, and compare two models.

    python demo/app.py --models output/bccd --dataset bccd_val

The same program as ``onenet page``.
"""

from onenet.api.page.main import main

if __name__ == "__main__":
    main()
