"""Finds the pose in which a copy lies over its original, aligns the two, and measures how far they agree.

The steps in order are in ``memorization.copy_score.RegisteredReferences``. ``search`` proposes poses, ``maps`` aligns
images, ``agreement`` measures, ``bands`` names what is measured.
"""
