"""The rooms and their levels, as docs/architecture.md draws them."""

LEVELS = {  # a room imports only rooms of a lower level
    "common": 0,
    **dict.fromkeys(("engine", "training", "nnunetv2_mod"), 1),
    **dict.fromkeys(("dataset", "features", "generators"), 2),
    **dict.fromkeys(("memorization", "evaluation"), 3),
    **dict.fromkeys(("gan", "diffusion"), 4),
    **dict.fromkeys(("sharing", "federated"), 5),
    "pipeline": 6,
    "studies": 7,
    "entry": 8,
}
