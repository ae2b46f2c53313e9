// Nothing of a page depends on this file: it only refreshes what is shown.
