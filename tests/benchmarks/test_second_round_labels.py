"""What is counted of the second round's labels."""
import numpy as np
from second_round_labels import COUNTS, counts


def test_agreement_is_counted_on_seeds_alone_and_background_everywhere():
    seeds = np.array([[0, 0, 3], [255, 3, 5]])
    labels = np.array([[0, 3, 3], [0, 0, 5]])
    assert dict(zip(COUNTS, counts(labels, seeds))) == {"foreground": 3, "foreground_agreeing": 2,
                                                        "background": 2, "background_agreeing": 1,
                                                        "pixels": 6, "predicted_background": 3}
