"""Pictures of bit widths."""

from matplotlib import image

from train.loop.bit_widths import PICTURE, draw_bit_widths


def test_blocks_of_one_width_are_a_bar_not_a_black_page(tmp_path):
    """A share is read against columns that have none."""
    draw_bit_widths(tmp_path, {f"blocks.{layer}.ffn.up.weight": {"6": 4} for layer in range(2)})
    picture = image.imread(tmp_path / PICTURE)[..., :3].min(axis=-1)
    left = picture[:, : picture.shape[1] // 2]
    assert 0.01 < (left < 0.1).mean() < 0.25
