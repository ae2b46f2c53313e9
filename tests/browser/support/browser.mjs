// A browser, and pages that report what a page of the console must never do.

import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, join } from 'node:path';

import { chromium } from 'playwright-core';

import { PATIENCE } from './program.mjs';

/** `CHROMIUM`, else `chromium` from the PATH. */
function binary() {
    if (process.env.CHROMIUM) return process.env.CHROMIUM;
    return (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, 'chromium')).find((file) => existsSync(file));
}

const CHROMIUM = binary();

/** Why all of it is skipped; `false` when it is not. */
export const withoutBrowser = CHROMIUM ? false : 'no chromium (CHROMIUM, PATH)';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

let browser;

/** The browser of this process, with a new profile of its own. It ends with the process. */
async function launched() {
    browser ??= chromium.launch({
        executablePath: CHROMIUM,
        headless: true,
        args: [
            '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync',
        ],
    });
    return browser;
}

/** Ends the browser: the last thing that a file of tests does. */
export async function close() {
    await (await browser)?.close();
    browser = undefined;
}

/** A context without cookies. */
export async function context(options = {}) {
    const made = await (await launched()).newContext({ viewport: { width: 1200, height: 800 }, ...options });
    made.setDefaultTimeout(15_000);
    return made;
}

/**
 * A page that records violations of the content security policy, exceptions, errors on the console, dialogs, requests to other
 * origins, and scripts that have run from a text (`window.__pwned`). `page.clean()` asserts that there was none of it.
 */
export async function watched(inside, origin) {
    const page = await inside.newPage();
    const found = [];
    const expected = [];
    page.on('pageerror', (error) => found.push(`exception: ${error.message}`));
    page.on('dialog', async (dialog) => {
        found.push(`dialog: ${dialog.message()}`);
        await dialog.dismiss();
    });
    page.on('console', (message) => {
        if (['error', 'warning'].includes(message.type())) found.push(`console: ${message.text()} (${message.location().url})`);
    });
    page.on('request', (request) => {
        const url = new URL(request.url());
        if (origin && url.origin !== origin && !['data:', 'blob:', 'about:'].includes(url.protocol)) found.push(`request: ${url}`);
    });
    await page.addInitScript(() => {
        let pwned;
        Object.defineProperty(window, '__pwned', {
            get: () => pwned,
            set: (value) => {
                pwned = value;
                console.error(`__pwned ${value}`);
            },
        });
        document.addEventListener('securitypolicyviolation', (event) => {
            console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
        });
    });
    /** Findings that match are expected from here on. */
    page.expects = (pattern) => expected.push(pattern);
    page.clean = () => {
        const wrong = found.filter((finding) => !expected.some((pattern) => pattern.test(finding)));
        if (wrong.length) throw new Error(`at ${page.url()}:\n${wrong.join('\n')}`);
    };
    return page;
}

/** What axe finds on the page as it is: nothing, or the rules with the places that break them. */
export async function accessibility(page) {
    if (!(await page.evaluate('typeof axe === "object"'))) await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => axe.run({ resultTypes: ['violations'] }));
    return violations.map(({ id, impact, help, nodes }) =>
        `${impact} ${id}: ${help}\n${nodes.slice(0, 5).map((node) => `    ${node.html}\n    ${node.failureSummary}`).join('\n')}`);
}

/** How many pixels the page is wider than the window. */
export const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
