// The programs as processes, and directories of a test's own.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** How long something that must happen may take on a busy machine. */
export const PATIENCE = 60_000;

/** The root of the repository. */
export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../../..');

/** The program that is tested: `BTCR2`, else the debug build. */
export const PROGRAM = process.env.BTCR2 ?? join(process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target'), 'debug/btcr2-aggregation');

/** What has to go when this process ends, also when a test has failed: children and directories. */
const children = new Set();
const directories = new Set();

/** Ends all children: without that, they keep this process alive. */
export function endAll() {
    for (const child of children) child.kill('SIGKILL');
}

process.on('exit', () => {
    endAll();
    for (const directory of directories) rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

/** An empty directory. It is removed at the end. */
export function directory() {
    const made = mkdtempSync(join(tmpdir(), 'btcr2-console-'));
    directories.add(made);
    return made;
}

/** Starts a process that does not outlive this one. */
export function launch(command, args, options = {}) {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    children.add(child);
    child.on('exit', () => children.delete(child));
    return child;
}

// Cohorts form at once, without waiting for more members than a test has.
const environment = { ...process.env, BTCR2_SETTLE: '0s' };

/** Runs the program to its end: standard output. It must succeed. */
export function run(...args) {
    const ended = spawnSync(PROGRAM, args, { encoding: 'utf8', env: environment, timeout: PATIENCE });
    if (ended.status !== 0) {
        throw new Error(`${args.join(' ')}: status ${ended.status} ${ended.error ?? ''}\n${ended.stdout}\n${ended.stderr}`);
    }
    return ended.stdout;
}

/** Waits until `check` gives something, and returns it. What it throws meanwhile is the reason of a failure. */
export async function eventually(what, check, patience = PATIENCE) {
    const until = Date.now() + patience;
    let problem;
    for (;;) {
        try {
            const found = await check();
            if (found) return found;
            problem = found;
        } catch (error) {
            problem = error;
        }
        if (Date.now() > until) throw new Error(`not in time: ${what} (${problem})`, { cause: problem });
        await new Promise((done) => setTimeout(done, 50));
    }
}

/** The program while it runs: the events that it prints, one JSON object a line. */
export class Program {
    constructor(args, options = {}) {
        this.name = args[0];
        this.seen = [];
        this.errors = '';
        this.waiting = new Set();
        this.child = launch(PROGRAM, args, { env: { ...environment, ...options.env }, ...(options.cwd ? { cwd: options.cwd } : {}) });
        this.child.stderr.setEncoding('utf8').on('data', (text) => (this.errors += text));
        createInterface({ input: this.child.stdout }).on('line', (line) => {
            this.seen.push(JSON.parse(line));
            this.#wake();
        });
        this.ended = new Promise((done) => {
            this.child.on('close', (status) => {
                this.status = status;
                this.over = true;
                this.#wake();
                done(status);
            });
        });
    }

    #wake() {
        for (const wake of this.waiting) wake();
    }

    /** The first event of that kind that matches, seen already or still to come. */
    event(kind, matches = () => true) {
        return new Promise((done, fail) => {
            const finish = (action, value) => {
                clearTimeout(timer);
                this.waiting.delete(look);
                action(value);
            };
            const about = () => `${kind} of ${this.name}; seen: ${JSON.stringify(this.seen.slice(-20), null, 1)}\n${this.errors}`;
            const look = () => {
                const found = this.seen.find((event) => event.event === kind && matches(event));
                if (found) finish(done, found);
                else if (this.over) finish(fail, new Error(`ended without ${about()}`));
            };
            const timer = setTimeout(() => finish(fail, new Error(`not in time: ${about()}`)), PATIENCE);
            this.waiting.add(look);
            look();
        });
    }

    /** Ends it, and waits until it has ended. */
    async stop(signal = 'SIGKILL') {
        if (!this.over) this.child.kill(signal);
        await this.ended;
    }
}
