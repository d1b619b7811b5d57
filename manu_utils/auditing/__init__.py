"""Forgotten or hidden: attacks on an unlearned model, and looks inside it. Derived in notebook 09.

Every function takes models and questions and gives tidy rows; the models are as they were.
"""

__all__: list[str] = []
