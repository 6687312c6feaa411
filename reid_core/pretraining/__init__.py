"""Training of the small CLIP that stands in for OpenAI's in the demo."""
