"""Chats: how a template writes them, how it is kept from thinking, and how a model responds."""

from caq.chat.chats import NO_TEMPLATE, encode_chat, manner_of, render_chat, render_prompt
from caq.chat.manner import ChatOptions, unknown_options
from caq.chat.respond import end_tokens, respond
from caq.chat.template import DATE, Messages, find_template
from caq.chat.thought import Split, split

__all__ = [
    "DATE",
    "NO_TEMPLATE",
    "ChatOptions",
    "Messages",
    "Split",
    "encode_chat",
    "end_tokens",
    "find_template",
    "manner_of",
    "render_chat",
    "render_prompt",
    "respond",
    "split",
    "unknown_options",
]
