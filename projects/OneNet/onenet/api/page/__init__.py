"""The page in the browser: pictures in, boxes out, and why a sample is an object's."""
