import numpy as np

from zoo.pictures.name_places import Places


def owners(size=(200, 300)):
    return np.full(size, -1, dtype=np.int32)


def test_a_name_lies_in_the_widest_part_of_its_segment():
    """A handle of 20 x 200 pixels with a head of 100 x 100 at its end."""
    found = owners()
    found[90:110, 20:200] = 0
    found[50:150, 180:280] = 0
    place = Places(found).find(0, 60, 16)
    assert place.inside == 1.0
    middle = place.left + 30, place.top + 8
    assert np.hypot(middle[0] - 230, middle[1] - 100) < 12


def test_names_do_not_cover_each_other():
    found = owners()
    found[50:150, 100:200] = 0
    places, put = Places(found), []
    while (place := places.find(0, 60, 16)) is not None and len(put) < 20:
        places.take(place, 60, 16)
        put.append(place)
    assert len(put) >= 4
    for a in put:
        for b in put:
            assert a is b or abs(a.left - b.left) >= 60 or abs(a.top - b.top) >= 16


def test_a_name_stays_in_the_picture():
    found = owners()
    found[0:20, 0:30] = 0
    place = Places(found).find(0, 40, 18)
    assert place.left >= 0
    assert place.top >= 0
    assert 0.5 < place.inside < 0.8
    assert Places(found).find(0, 400, 18) is None
    assert Places(found).find(3, 4, 4) is None  # a segment without pixels


def test_the_frame_of_the_picture_is_an_edge_too():
    found = owners()
    found[:100] = 0
    assert abs(Places(found).find(0, 60, 16).top + 8 - 50) < 4


def test_a_hole_is_no_place():
    found = owners()
    found[20:180, 20:280] = 0
    found[60:140, 90:210] = 1  # another segment where the middle is
    place = Places(found).find(0, 50, 16)
    assert place.inside == 1.0
    rows, columns = slice(place.top, place.top + 16), slice(place.left, place.left + 50)
    assert (found[rows, columns] == 0).all()


def test_large_pictures_are_looked_at_coarsely():
    found = owners((2000, 3000))
    found[500:1500, 1000:2000] = 0
    place = Places(found).find(0, 400, 100)
    assert abs(place.left + 200 - 1500) < 40
    assert abs(place.top + 50 - 1000) < 40
