"""`recipes/chatbot_rlhf.py`: phases from base model to chatbot, each a process that can be interrupted; and a chat."""
