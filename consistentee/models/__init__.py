"""Stock models with exits: classifiers, adapters, learned heads; how they are saved and loaded."""
