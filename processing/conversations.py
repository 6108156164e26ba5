"""What a conversation says beside words and images: the tags of each image, and the task of each chat."""

from collections.abc import Sequence
from typing import Any

Chat = Sequence[dict[str, Any]]


def tags_and_tasks(conversations: Sequence[Chat], usual_task: str) -> dict[str, list]:
    """
    Arguments of the processor's call.

    Args:
        conversations: chats whose images are parts such as `{"type": "image", "image": ..., "tags": [...]}`; a message
            may name the task of its chat, `{"role": "user", "task": "grounding", "content": [...]}`.
        usual_task: of a chat that names none, where another one does.

    Returns:
        `tags`, one entry for each image in reading order, if one of them has any; `task`, one for each chat, if one of
        them names it.
    """
    tags = [
        part.get("tags")
        for chat in conversations
        for message in chat
        if not isinstance(message.get("content") or "", str)
        for part in message["content"]
        if part["type"] == "image"
    ]
    tasks = [next((m["task"] for m in reversed(chat) if m.get("task")), None) for chat in conversations]
    return {
        **({"tags": tags} if any(tags) else {}),
        **({"task": [task or usual_task for task in tasks]} if any(tasks) else {}),
    }
