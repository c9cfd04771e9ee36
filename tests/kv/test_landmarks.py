from services.kv.landmarks import is_landmark, landmarks


def test_the_landmarks_of_a_prompt_are_those_of_its_blocks_that_are_landmarks() -> None:
    for num_blocks in (0, 1, 7, 8, 9, 15, 16, 17, 100):
        assert list(landmarks(num_blocks)) == [index for index in range(num_blocks) if is_landmark(index)]
