"""What leaves the machine: the model card, the evaluation that it rests on, and the upload to the hub."""
