"""`make demo`: a small Qwen2-Audio learns to listen, from nothing, in minutes on a laptop."""
