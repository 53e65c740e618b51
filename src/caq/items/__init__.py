"""What models are asked: questions with options, requests, and how both are put."""
