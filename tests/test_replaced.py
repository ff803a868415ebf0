"""Attributes that are different for a while are what they were afterwards, and whose they were."""

import pytest

from rlhf_ext.replaced import replaced


class Owner:
    of_class = 1

    def method(self):
        return "own"


def test_everything_is_as_it_was_also_after_an_error():
    owner = Owner()
    owner.of_instance = 2
    with pytest.raises(KeyError), replaced(owner, of_class=3, of_instance=4, method=lambda: "other"):
        assert (owner.of_class, owner.of_instance, owner.method()) == (3, 4, "other")
        raise KeyError
    assert vars(owner) == {"of_instance": 2}  # nothing that hides what the class may be given later
    assert (owner.of_class, owner.method()) == (1, "own")


def test_attribute_that_is_not_there_is_refused_and_nothing_is_changed():
    owner = Owner()
    with pytest.raises(AttributeError, match="missing"), replaced(owner, of_class=3, missing=4):
        pass
    assert not vars(owner)
