"""Pictures of detections and the paper's figures."""
