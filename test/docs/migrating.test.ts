/** The page on migrating: each way from an empty server to clients who see their rows and can forge nothing. */
import { describeDocument } from './describe-document.ts';

describeDocument('migrating.md', { siteForEachSection: true });
