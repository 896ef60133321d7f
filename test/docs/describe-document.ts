/**
 * Declares a test for every block of a document, in order, each on what those before it have left.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readDocument, whyNotRun, type Block } from './document.ts';
import { startSite, type Site } from './site.ts';
import { reportsError, transcript } from './terminal.ts';

/** Runs a block and answers what it printed. */
export type Runner = (block: Block, site: Site) => Promise<string>;

/** How a document differs from others. */
export interface DocumentOptions {
  /** Whether each of its sections begins with an empty database. */
  readonly siteForEachSection?: boolean;
  /** Whether a block cannot be run on this machine; whoever asks has said why. */
  readonly skip?: (block: Block) => boolean;
  /** For languages beside `sql`, `sh` and `json`. */
  readonly runners?: Readonly<Record<string, Runner>>;
}

/** The test of `docs/<file>`. */
export function describeDocument(file: string, options: DocumentOptions = {}): void {
  const blocks = readDocument(file);
  const sections = options.siteForEachSection
    ? [...new Set(blocks.map((one) => one.section))]
    : [''];
  describe(`docs/${file}`, () => {
    describe.each(sections)('section %s', (section) => {
      let site: Site;
      beforeAll(async () => {
        site = await startSite();
      }, 60_000);
      afterAll(() => site?.close());

      const here = blocks.filter((one) => section === '' || one.section === section);
      for (const block of here) {
        const title = `line ${block.line}, ${block.language}: ${firstLine(block)}`;
        const skipped = whyNotRun(block) !== undefined || options.skip?.(block) === true;
        it.skipIf(skipped)(title, () => tryOut(block, site, options), 60_000);
      }
    });
  });
}

function firstLine({ remark, code }: Block): string {
  return [remark, code.split('\n', 1)[0]].join(' ').trim();
}

async function tryOut(block: Block, site: Site, { runners = {} }: DocumentOptions): Promise<void> {
  const run = runners[block.language] ?? RUNNERS[block.language];
  if (run === undefined) throw new Error(`nothing runs ${block.language}`);

  const printed = await run(block, site);

  if (block.output !== undefined) expect(printed).toBe(block.output);
  else expect(reportsError(printed) ? printed : 'no error').toBe('no error');
}

/** Who runs which language, wherever a document does not say otherwise. */
export const RUNNERS: Readonly<Record<string, Runner>> = {
  /** It begins with who runs it: `-- the administrator`, `-- a superuser`, `-- alice`, `-- carol, as analyst`. */
  async sql({ code }, site) {
    const [, who, role] = /^-- ((?:the |a )?[\w-]+)(?:, as (\w+))?\n/.exec(code) ?? [];
    if (who === undefined) throw new Error('who runs it?');
    const name = { 'the administrator': 'admin', 'a superuser': 'superuser' }[who] ?? who;
    return transcript(await site.as(name, role), code);
  },

  /** `sh`, `sh status 1` where the command fails, or `sh with warnings` where it succeeds and yet complains. */
  async sh({ remark, code }, site) {
    const expected = Number(/^status (\d+)$/.exec(remark)?.[1] ?? 0);
    const { status, stdout, stderr } = await site.shell(code);
    const warned = remark === 'with warnings' ? stderr : '';
    expect({ status, stderr }).toEqual({ status: expected, stderr: warned });
    return `${warned}${stdout}`.trimEnd();
  },

  /** `json token of carol`: her claims beside `sub`; `json configuration`: a part of proxy.config.json. */
  async json({ remark, code }, site) {
    const value = JSON.parse(code) as Record<string, unknown>;
    const [, name] = /^token of ([\w-]+)$/.exec(remark) ?? [];
    if (name !== undefined) await site.giveToken(name, value);
    else if (remark === 'configuration') await site.configure(value);
    else throw new Error(`what is it? "${remark}"`);
    return '';
  },
};
