"""Where a model keeps what it sees: logit lens, token ablation, attention knockout, object probes."""
