"""The demo: a small Qwen2-Audio trained from scratch in minutes on a laptop."""
