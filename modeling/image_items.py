"""What a model's `get_image_features` returns, by item: an image or a tile of one, and what goes with it."""

import torch


def of_items(rows, count, device):
    """Rows (N, L) for `count` items: repeated for the tiles of an image and for beams; none where none are given."""
    if rows is None or rows[0].shape[1] == 0:  # nobody in the batch has any
        ids = torch.zeros(count, 1, dtype=torch.long, device=device)
        return ids, ids.bool(), ids.float()
    if count % len(rows[0]):
        raise ValueError(
            f"tags or questions of {len(rows[0])} images are given for {count} images: give one row per image, "
            "all-zero in the attention mask for an image without."
        )
    return tuple(part.to(device).repeat_interleave(count // len(part), dim=0) for part in rows)


def states_of_items(states, items, grid):
    """The tower's states for each item, n × L' × [1, P', Dv], however the family lays them out."""
    if not states:
        raise ValueError(
            "get_image_features returned no hidden states of the tower: router_type='reliability' needs them."
        )
    count = len(items)
    layers = []
    for layer in states:
        layer = layer.flatten(2).mT if layer.ndim == 4 else layer
        layer = layer[0] if layer.ndim == 3 and len(layer) == 1 < count else layer
        if layer.ndim == 2:  # the patches of all images in one row
            sizes = grid.prod(-1) if grid is not None else torch.tensor([item.shape[0] for item in items])
            sizes = (sizes * layer.shape[0] // sizes.sum()).tolist()
            layers.append([part[None] for part in layer.split(sizes)])
        elif layer.shape[0] % count == 0:  # tiles of one image behind one another
            layers.append([part.reshape(1, -1, part.shape[-1]) for part in layer.split(layer.shape[0] // count)])
        else:
            raise ValueError(
                f"{count} images of {layer.shape[0]} tiles: which belong to which cannot be told where they differ in "
                "number; give images one at a time, or take router_type='gate'."
            )
    return list(zip(*layers, strict=True))


def equal_places(items, states):
    """Groups of items that can share a batch: as many image tokens and as many tower tokens each."""
    groups = {}
    for place, item in enumerate(items):
        key = (item.shape[0], None if states is None else tuple(layer.shape[1] for layer in states[place]))
        groups.setdefault(key, []).append(place)
    return list(groups.values())
