"""The detectors that OneNet is compared with."""
