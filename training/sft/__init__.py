"""Supervised fine-tuning: `poise sft`."""
