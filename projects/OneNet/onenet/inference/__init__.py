"""From predictions to detections, and what makes that fast."""
