// What each file of tests has: its tests, which are skipped by name where something is missing, and the end of its browser.

import { after, test as run } from 'node:test';

import { close, withoutBrowser } from './browser.mjs';
import { withoutNode } from './node.mjs';
import { endAll } from './program.mjs';

after(async () => {
    endAll();
    await close();
});

/** A test in a browser. */
export const test = (name, body) => run(name, { skip: withoutBrowser }, body);

/** A test in a browser, with a regtest node. */
export const testOnNode = (name, body) => run(name, { skip: withoutBrowser || withoutNode }, body);
