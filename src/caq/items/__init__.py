"""What models are asked: questions with options, requests, and their prompts."""
