// A service with a console, its members, and an operator at a browser.

import assert from 'node:assert/strict';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { context, watched } from './browser.mjs';
import { directory, Program, run } from './program.mjs';

export class World {
    /** A service without terms, which waits for its operator. With a `node` it has a chain. */
    static async start({ node, args = [] } = {}) {
        const world = new World();
        world.home = directory();
        world.state = join(world.home, 'state');
        mkdirSync(world.state);
        run('identity', 'new', '--network', 'regtest', '--out', join(world.home, 'service'));
        world.chain = node ? ['--chain', node.chain, '--chain-poll', '200ms', '--confirmations', '3'] : ['--chain', 'offline'];
        await world.serve(args);
        return world;
    }

    /** Starts the service, also again. */
    async serve(args = []) {
        this.service = new Program([
            'serve', '--identity', join(this.home, 'service'), '--events', 'json', '--listen', '127.0.0.1:0', '--state', this.state,
            '--out', join(this.home, 'out'), '--control', '127.0.0.1:0', '--console', ...this.chain, ...args,
        ]);
        const { url, console } = await this.service.event('control');
        this.control = url;
        this.console = console.replace(/\/$/, '');
        this.origin = new URL(console).origin;
        this.url = (await this.service.event('serving')).url;
    }

    /** A new token. */
    token(role = 'admin', label = role, ...more) {
        return run('control', 'token', 'new', '--role', role, '--label', label, '--state', this.state, ...more).trim();
    }

    /** The identifier of a token. */
    static id(token) {
        return token.split('_')[1];
    }

    /** Runs `ctl`: its answer. */
    ctl(...args) {
        return JSON.parse(run('ctl', '--json', '--state', this.state, ...args));
    }

    /** The identity file of a member. */
    identity(name) {
        const file = join(this.home, name);
        if (!existsSync(file)) run('identity', 'new', '--network', 'regtest', '--out', file);
        return file;
    }

    did(name) {
        return JSON.parse(run('identity', 'show', '--json', this.identity(name))).did;
    }

    /** A member as a program: it joins the next cohort, with an update, and ends with that. */
    join(name, ...args) {
        const update = args.includes('--decline') ? [] : ['--add-beacon'];
        return new Program([
            'join', '--service', this.url, '--identity', this.identity(name), '--events', 'json', '--exit-when-done', ...update, ...args,
        ]);
    }

    /** A page of a browser that is not logged in. */
    async visitor(options = {}) {
        const inside = await context(options);
        const page = await watched(inside, this.origin);
        page.open = (path) => page.goto(this.console + path);
        return page;
    }

    /** A page of a browser that has logged in with a new token of this role, at the overview. */
    async operator(role = 'admin', options = {}) {
        const page = await this.visitor(options);
        page.token = this.token(role);
        await page.open('/');
        await logIn(page, page.token);
        await page.getByRole('heading', { name: 'Overview', level: 1 }).waitFor();
        return page;
    }
}

export async function logIn(page, token) {
    await page.getByLabel('Token', { exact: true }).fill(token);
    await page.getByRole('button', { name: 'Log in' }).click();
}

/** Waits for a text on the page. */
export const shows = (page, text, options = {}) => page.getByText(text, options).first().waitFor();

/** Waits for a heading. */
export const titled = (page, name) => page.getByRole('heading', { name, level: 1 }).waitFor();

/** Asserts that the page stays what it is from here on: `stays()` fails after it was loaded again, or left. */
export async function mark(page) {
    const number = Math.random();
    await page.evaluate((number) => (window.__mark = number), number);
    page.stays = async () => assert.equal(await page.evaluate(() => window.__mark), number, 'the page was loaded again');
}

/** Closes a page with its browser context, after it was asserted that it is clean. */
export async function leave(...pages) {
    for (const page of pages) {
        page.clean();
        await page.context().close();
    }
}
