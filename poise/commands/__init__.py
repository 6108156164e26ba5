"""The commands of `poise`, a file each."""
